"""Settings of how an image file is read, each with its values; `rgb.ToRgb` describes them."""

SETTINGS = {"transparency": ("white", "ignore"), "exif": ("apply", "ignore")}
