"""Image files to pixels: Pillow or DALI, behind one interface."""
