"""Self-contained HTML pages and plots of what runs measured."""
