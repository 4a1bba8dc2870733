"""The API's description (OpenAPI 3.1) and a page to try it."""
