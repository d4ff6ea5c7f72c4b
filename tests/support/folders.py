"""Files of a model or a memory, changed."""

import json


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
