"""The desk server: one broker account, many people's strategies. Start reading at `desk.py`."""
