"""The former place of :mod:`pelk_mm.diagnostics`."""
