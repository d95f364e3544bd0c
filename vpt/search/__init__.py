"""Search: a gallery of pictures embedded once, asked by text, by picture and by a learned concept."""
