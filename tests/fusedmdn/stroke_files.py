# ruff: noqa: E501 (characters as they are)
"""Files of strokes as others write them: made up here, but for two characters of KanjiVG.

KANJI: copyright (C) 2009-2026 Ulrich Apel and the KanjiVG contributors, https://kanjivg.tagaini.net, CC BY-SA 3.0
(fusedmdn/assets/kanjivg/COPYING); shortened by their comments, and partly by their document types.
"""

import contextlib

import numpy as np
import pytest

from fusedmdn.dataset import StrokeFileError

IAM_LINE = """<?xml version="1.0" encoding="ISO-8859-1"?>
<WhiteboardCaptureSession>
  <WhiteboardDescription>
    <SensorLocation corner="top_left"/>
    <DiagonallyOppositeCoords x="6512" y="1376"/>
    <VerticallyOppositeCoords x="966" y="1376"/>
    <HorizontallyOppositeCoords x="6512" y="787"/>
  </WhiteboardDescription>
  <StrokeSet>
    <Stroke colour="black" start_time="769.05" end_time="769.11">
      <Point x="1073" y="1058" time="769.05"/>
      <Point x="1085" y="1060" time="769.06"/>
      <Point x="1099" y="1070" time="769.07"/>
      <Point x="1120" y="1101" time="769.10"/>
      <Point x="1127" y="1110" time="769.11"/>
    </Stroke>
    <Stroke colour="black" start_time="769.64" end_time="769.64">
      <Point x="1150" y="1000" time="769.64"/>
    </Stroke>
  </StrokeSet>
</WhiteboardCaptureSession>
"""
IAM_FORM = "OCR:\n\nPirst line\n\nCSR:\n\nFirst line\nSecond line\n"

INKML = """<?xml version="1.0" encoding="UTF-8"?>
<ink xmlns="http://www.w3.org/2003/InkML">
  <annotation type="label">x^{2}</annotation>
  <annotation type="writer">a</annotation>
  <traceFormat><channel name="T" type="integer"/><channel name="X"/><channel name="Y"/></traceFormat>
  <trace id="0">0 10.5 20, 1 11.5 22, 3 12 21</trace>
  <traceGroup><annotation type="truth">2</annotation><trace id="1">9 30 40, 10 30 41</trace></traceGroup>
</ink>
"""

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">
  <defs><path id="no" d="M0 0L99 99"/></defs>
  <rect width="100" height="100" fill="white"/>
  <g transform="translate(10 20) scale(2)">
    <path d="m0 0 10 0v10h-10z M 1,1 C 1 5 5 5 5 1 s4-4 4 0 q1 1 2 0 t2 0 a2 3 30 0110 10"/>
    <g transform="rotate(90)"><polyline points="0,0 1,0 1,1"/></g>
  </g>
  <polygon points="1 1 2 1 2 2"/><line x1="5" y1="6" x2="7" y2="8"/>
</svg>
"""

KANJI = {
    "木": """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/TR/2001/REC-SVG-20010904/DTD/svg10.dtd" [
<!ATTLIST g
xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net"
kvg:element CDATA #IMPLIED
kvg:radical CDATA #IMPLIED >
<!ATTLIST path
xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net"
kvg:type CDATA #IMPLIED >
]>
<svg xmlns="http://www.w3.org/2000/svg" width="109" height="109" viewBox="0 0 109 109" xmlns:kvg="https://kanjivg.tagaini.net/">
<g id="kvg:StrokePaths_06728" style="fill:none;stroke:#000000;stroke-width:3;stroke-linecap:round;stroke-linejoin:round;">
<g id="kvg:06728" kvg:element="木" kvg:radical="general">
	<path id="kvg:06728-s1" kvg:type="㇐" d="M19.5,39.86c2.45,0.57,5.23,0.8,8.04,0.57C40.75,39.38,63,36.5,79.78,36.15c2.8-0.06,4.54,0.1,7.34,0.5"/>
	<path id="kvg:06728-s2" kvg:type="㇑" d="M51.75,10.5c1.19,1.19,2,3,2,5c0,8.65,0,55.15-0.14,74.75c-0.03,4.19-0.07,7.15-0.11,8.25"/>
	<path id="kvg:06728-s3" kvg:type="㇒" d="M50.75,39.5c0,1.12-0.61,2.44-1.42,3.95C41.75,57.5,26.7,73.93,15.75,80.25"/>
	<path id="kvg:06728-s4" kvg:type="㇏" d="M54.5,39c4.62,6,23,25.75,31.76,34.61c2.27,2.29,4.61,4.39,7.49,5.64"/>
</g>
</g>
<g id="kvg:StrokeNumbers_06728" style="font-size:8;fill:#808080">
	<text transform="matrix(1 0 0 1 12.50 41.50)">1</text>
	<text transform="matrix(1 0 0 1 42.50 11.50)">2</text>
</g>
</svg>
""",
    "の": """<svg xmlns="http://www.w3.org/2000/svg" width="109" height="109" viewBox="0 0 109 109" xmlns:kvg="https://kanjivg.tagaini.net/">
<g id="kvg:StrokePaths_0306e" style="fill:none;stroke:#000000;stroke-width:3;stroke-linecap:round;stroke-linejoin:round;">
<g id="kvg:0306e" kvg:element="の">
	<path id="kvg:0306e-s1" d="M53.82,28.62c1,1.5,1.34,4.12,0.88,6.62c-1.75,9.5-6.89,25-10.75,33.12c-9.63,20.26-16.55,14.74-24.38-1.98c-9.13-19.5,23.5-48.88,50.63-40.38c32.38,10.15,28,54.62-4.75,60.88"/>
</g>
</g>
<g id="kvg:StrokeNumbers_0306e" style="font-size:8;fill:#808080">
	<text transform="matrix(1 0 0 1 46.45 34.88)">1</text>
</g>
</svg>
""",
}  # fmt: skip


def combined(*characters):
    """KanjiVG's one document of all its characters: the groups of these drawings, with a variant that is left out."""
    kanji = []
    for character in characters:
        code = f"{ord(character):05x}"
        text = KANJI[character]
        group = text[text.index(f'<g id="kvg:{code}"') : text.index('<g id="kvg:StrokeNumbers')].rstrip()
        kanji.append(f'<kanji id="kvg:kanji_{code}">\n{group.removesuffix("</g>")}</kanji>\n')
        kanji.append(f'<kanji id="kvg:kanji_{code}-Kaisho">\n{group.removesuffix("</g>")}</kanji>\n')
    return f"<kanjivg xmlns:kvg='http://kanjivg.tagaini.net'>\n{''.join(kanji)}</kanjivg>\n"


def drawings(n=3, dtype=np.int16):
    """(N, 3) arrays as sketch-rnn keeps drawings."""
    return [np.array([[3 * k, -i, k == i + 1] for k in range(i + 2)], dtype) for i in range(n)]


def objects(arrays):
    """An object array of arrays, whatever their shapes."""
    held = np.empty(len(arrays), object)
    held[:] = arrays
    return held


@contextlib.contextmanager
def refused(path, match):
    """A refusal that names the file, in one short line that a terminal can show, whatever stands in the file."""
    with pytest.raises(StrokeFileError, match=match) as error:
        yield
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert len(said.replace(str(path), "")) < 400
