def draw(l):
    pass
