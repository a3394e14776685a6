"""What `import dia` offers: a detector for images in any form that Python code has them in."""
