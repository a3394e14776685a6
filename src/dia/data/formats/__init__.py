"""Files of images to pixels: DICOM, volumes of several formats, deep TIFF and PNG, and Pillow's formats."""
