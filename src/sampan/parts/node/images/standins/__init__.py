"""Small programs that stand in for well-known images, so that published manifests run with nothing pulled.

Each module is one program with a ``main`` that takes the original's command line and environment.
"""
