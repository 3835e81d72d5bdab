"""Our own server: every protocol on one port, over one engine. FastAPI routes, uvicorn serves."""
