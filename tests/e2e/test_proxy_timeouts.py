"""Streams, late answers and sockets that are silent for long, through Envoy as its controllers set it up."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.e2e.chart import example, merged, render, set_values
from tests.e2e.proxies import STREAM_IDLE_TIMEOUT, Envoy, Routing, envoy_gateway, hastened, istio
from tests.e2e.runtimes import OURS, free_ports
FACTOR=100
SILENCE = 2*STREAM_IDLE_TIMEOUT/FACTOR
import socket
from websockets.sync.client import connect
from websockets.exceptions import ConnectionClosed
AGENT = """\
import asyncio
import sys

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()


async def events(times, pause):
    for number in range(times):
        yield number
        await asyncio.sleep(pause)
    yield "last"


@app.entrypoint
async def agent(payload):
    if "answer" in payload:
        await asyncio.sleep(payload["answer"])
        return "late"
    return events(payload["times"], payload["pause"])


@app.websocket
async def echo(websocket, context):
    await websocket.accept()
    async for message in websocket.iter_data("text"):
        await websocket.send_text(message)


app.run(int(sys.argv[1]), ws_ping_interval=float(sys.argv[2]))
"""
def stream(px, payload):
    t=time.monotonic()
    try:
        with httpx.stream("POST", f"http://127.0.0.1:{px.port}/invocations", headers={"Host": px.host}, json=payload, timeout=60, trust_env=False) as r:
            lines=[]
            for l in r.iter_lines():
                lines.append(l)
        return (r.status_code, lines[-3:], time.monotonic()-t)
    except httpx.HTTPError as e:
        return (repr(e), time.monotonic()-t)
def sock(px, silence):
    t=time.monotonic()
    c=socket.create_connection(("127.0.0.1", px.port),60)
    try:
        with connect(f"ws://{px.host}/ws", sock=c, proxy=None, ping_interval=None) as ws:
            ws.send("a"); ws.recv(10)
            time.sleep(silence)
            ws.send("b"); return (ws.recv(10), time.monotonic()-t)
    except Exception as e:
        return (repr(e), time.monotonic()-t)

def test_x(tmp_path):
    eg=example("affinity-envoy-gateway"); is_=example("affinity-istio")
    routes={
     "none": envoy_gateway(render(merged(eg, set_values("httpRoute.requestTimeout=")))),
     "eg": envoy_gateway(render(eg)),
     "ctp": envoy_gateway(render(eg), 300),
     "ctp-B": envoy_gateway(render(eg), 300),
     "istio": istio(render(is_)),
     "side": istio(render(is_), sidecar=True),
    }
    a,b=free_ports(2)
    with ExitStack() as st:
        for port,ka,ping in ((a,"15","20"),(b,str(15/FACTOR),str(20/FACTOR))):
            d=tmp_path/str(port); d.mkdir(); f=d/"agent.py"; f.write_text(AGENT)
            st.enter_context(OURS.serve(f,str(port),ping,ports=[port],AGENTCORE_SSE_KEEPALIVE_SECONDS=ka))
        pxs={n: st.enter_context(Envoy(hastened(r,FACTOR),tmp_path/n).running({"x": b if n.endswith("B") else a})) for n,r in routes.items()}
        with ThreadPoolExecutor(40) as ex:
            fs={}
            for n,px in pxs.items():
                fs[n,"talk"]=ex.submit(stream,px,{"times":20,"pause":0.05})
                fs[n,"silent"]=ex.submit(stream,px,{"times":1,"pause":SILENCE})
                fs[n,"late"]=ex.submit(stream,px,{"answer":SILENCE})
                fs[n,"socket"]=ex.submit(sock,px,SILENCE)
            for k,f in fs.items(): print(k, f.result())
        for n,px in pxs.items(): print(n, px.admin("/stats?filter=(idle_timeout|rq_timeout|rq_tx_reset|max_duration)").replace("\n"," "))
    assert 0
