"""Our own server: every protocol on one port, over one engine. FastAPI has the routes; uvicorn serves them."""
