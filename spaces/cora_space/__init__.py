"""The demo Space: a page that asks a CORA model about pictures.

    settings.py   what a deployment may choose, from arguments or the environment
    inputs.py     what a visitor may send: one picture, some queries, an anchor
    answering.py  the model, behind a lock and a cache of encoded pictures
    drawing.py    the picture with masks, its legend, maps of uncertainty
    downloads.py  masks as PNGs, COCO's run lengths, the code that repeats the call
    page.py       the page itself (with page.css)
    uploads.py    components that take nothing but what was uploaded
    serving.py    from settings to a page that is served

The last three know Gradio; nothing else does. All know `modeling_cora`, which lies beside `app.py` where the folder is
a Space, and in the folder above in the repository.
"""
