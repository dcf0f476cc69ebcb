"""The dashboard: what it knows (``state``), its server (``server``) and its page (``static``). No ROS in here."""
