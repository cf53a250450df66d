"""What decoding no more of a JPEG than the crop's region would take. No package that pip installs offers it.

libjpeg-turbo does (`jpeg_crop_scanline`, `jpeg_skip_scanlines`, since version 1.5). Here the system's copy is called
from a few lines of C, to know what is missed; nothing but benchmarks/speed/input_pipeline.py uses it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = r"""
#include <stddef.h>
#include <stdio.h>
#include <jpeglib.h>

/* Decodes rows top to top+height and, give or take a block, columns left to left+width; all of it if height is 0. */
void decode(unsigned char *file, unsigned long size, unsigned char *pixels, unsigned eighths,
            unsigned top, unsigned left, unsigned height, unsigned width) {
  struct jpeg_decompress_struct image;
  struct jpeg_error_mgr errors;
  image.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&image);
  jpeg_mem_src(&image, file, size);
  jpeg_read_header(&image, TRUE);
  image.scale_num = eighths;
  image.scale_denom = 8;
  image.out_color_space = JCS_RGB;
  jpeg_start_decompress(&image);
  if (height) {
    jpeg_crop_scanline(&image, &left, &width);
    jpeg_skip_scanlines(&image, top);
  } else
    height = image.output_height;
  for (unsigned row = 0; row < height;) {
    unsigned char *line = pixels + (size_t)row * image.output_width * 3;
    row += jpeg_read_scanlines(&image, &line, 1);
  }
  jpeg_abort_decompress(&image);
  jpeg_destroy_decompress(&image);
}
"""


def build() -> ctypes.CDLL | None:
    """Compiles it; None where there is no C compiler or libjpeg-turbo's header is missing."""
    if not shutil.which("cc"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "region.c", Path(folder) / "region.so"
        source.write_text(SOURCE)
        command = ["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library), "-ljpeg"]
        done = subprocess.run(command, capture_output=True, check=False)
        return ctypes.CDLL(str(library)) if done.returncode == 0 else None
