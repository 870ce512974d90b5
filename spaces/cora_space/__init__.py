"""The demo Space: a page that asks a CORA model about pictures.

    settings.py   what a deployment may choose, from arguments or the environment
    inputs.py     what a visitor may send: one picture, some queries, an anchor
    answering.py  the model, behind a lock and a cache of encoded pictures
    drawing.py    the picture with masks, its legend, maps of uncertainty
    downloads.py  masks as PNGs, COCO's run lengths, the code that repeats the call
    page.py       the page itself; nothing but this file and photo.py knows Gradio
    photo.py      the upload, handed over unopened

Knows `modeling_cora`, which lies beside `app.py` where the folder is a Space, and in the folder above in the
repository.
"""
