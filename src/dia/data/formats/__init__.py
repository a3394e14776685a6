"""Files of images to pixels: Pillow's formats, DICOM, NIfTI, deep TIFF and PNG."""
