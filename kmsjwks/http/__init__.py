"""The HTTP edge: Flask views over the services. Holds no business rule."""
