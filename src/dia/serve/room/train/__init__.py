"""What a training in the browser is made of: normals, the look at them, a process, its runs."""
