"""Protocol schemas of ours (``*.proto``) and the modules generated from them (``tools/generate_protos.py``)."""
