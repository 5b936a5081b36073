"""The fault drill (``lgd drill``): a small sweep, one fault at a time, and what is checked afterwards."""
