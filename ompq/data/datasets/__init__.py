"""How each data set is opened: folders of files, or images in memory."""
