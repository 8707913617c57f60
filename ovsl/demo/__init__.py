"""A page in the browser: a photo, words, and what a method sees. Gradio is imported when the page is built."""
