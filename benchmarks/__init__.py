"""Figures of lazyrestore beside those of what people would use instead. See README.md."""
