"""Files of findings: rows and COCO-like JSON, masks as PNG, NIfTI and DICOM SEG."""
