"""How commands that signals end are told of; argv[1] says where, argv[2:] which."""

import asyncio
import json
import sys
import warnings

warnings.simplefilter("ignore")  # of the cryptography library, about old ciphers

import asyncssh

c = json.loads(sys.argv[1])


async def main():
    keys = [(c["key"], c["cert"])] if c.get("cert") else [c["key"]]
    common = dict(client_keys=keys, known_hosts=c["known_hosts"], config=None, agent_path=None)
    tunnel = None
    if c.get("jump"):
        tunnel = await asyncssh.connect(c["jump"]["host"], c["jump"]["port"], username=c["jump"]["user"], **common)
    async with asyncssh.connect(c["host"], c["port"], username=c["user"], tunnel=tunnel, **common) as conn:
        for name in sys.argv[2:]:
            p = await conn.run(f"ulimit -c 0; kill -{name} $$; sleep 60")
            print(name, p.exit_status, p.exit_signal)
        # And signals that the client sends.
        for name in ("TERM", "INT", "USR1"):
            p = await conn.create_process("trap 'echo got; exit 9' %s; echo ready; while :; do sleep 0.05; done" % name)
            await p.stdout.readline()
            p.send_signal(name)
            text = await asyncio.wait_for(p.stdout.read(), 20)
            await p.wait_closed()
            print("sent", name, text.strip(), p.exit_status)
    if tunnel:
        tunnel.close()


asyncio.run(asyncio.wait_for(main(), 90))
