"""A quantized network as a web page: a folder for any static server, nothing else needed.

page.py writes the folder; onnxruntime_web.py fetches what runs the network there, once. The page:

    index.html, style.css  what is seen
    page.js                network, images and results put into the page
    preprocess.js          an image to the network's input, pixel for pixel as this toolkit does it
    test_images.js         the file of test images read, and logits compared with its own
"""
