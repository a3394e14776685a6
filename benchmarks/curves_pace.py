def pace():
    pass
