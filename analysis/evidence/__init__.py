"""The evidence page and each kept study's page, wholly from records."""
