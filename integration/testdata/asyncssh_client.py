"""What asyncssh is put through; argv[1] is a JSON object that says where."""

import asyncio
import json
import sys
import warnings

warnings.simplefilter("ignore")  # of the cryptography library, about old ciphers

import asyncssh

c = json.loads(sys.argv[1])


async def command(conn):
    body = bytes(range(256)) * 4096
    p = await conn.run("cat; echo err >&2; exit 7", input=body, encoding=None)
    assert p.stdout == body, f"{len(p.stdout)} bytes came back"
    assert p.stderr == b"err\n", p.stderr
    assert p.exit_status == 7, p.exit_status
    p = await conn.run("kill -TERM $$")
    assert p.exit_signal and p.exit_signal[0] == "TERM", (p.exit_status, p.exit_signal)


async def terminal(conn):
    p = await conn.create_process(term_type="vt100", term_size=(90, 30))
    p.stdin.write("stty size; exit 4\n")
    text = await p.stdout.read()
    assert "30 90" in text, text
    await p.wait_closed()
    assert p.exit_status == 4, p.exit_status


async def files(conn):
    async with conn.start_sftp_client() as sftp:
        path = c["dir"] + "/asyncssh"
        body = bytes(range(256)) * 5000
        async with sftp.open(path, "wb") as f:
            await f.write(body)
        await sftp.rename(path, path + "2")
        await sftp.chmod(path + "2", 0o600)
        assert (await sftp.stat(path + "2")).size == len(body)
        assert "asyncssh2" in await sftp.listdir(c["dir"])
        async with sftp.open(path + "2", "rb") as f:
            assert await f.read() == body
        await sftp.symlink(path + "2", path + "3")
        assert await sftp.readlink(path + "3") == path + "2"
        await sftp.remove(path + "3")
        await sftp.remove(path + "2")


async def forward(conn):
    reader, writer = await conn.open_connection(c["echo_host"], c["echo_port"], encoding=None)
    writer.write(b"there and back")
    writer.write_eof()
    assert await reader.read() == b"there and back"


async def remote(conn):
    listener = await conn.forward_remote_port("127.0.0.1", 0, c["echo_host"], c["echo_port"])
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
    writer.write(b"hello")
    writer.write_eof()
    assert await reader.read() == b"hello"
    listener.close()
    await listener.wait_closed()


async def main():
    keys = [(c["key"], c["cert"])] if c.get("cert") else [c["key"]]
    common = dict(client_keys=keys, known_hosts=c["known_hosts"], config=None, agent_path=None, x509_trusted_certs=None)
    tunnel = None
    if c.get("jump"):
        tunnel = await asyncssh.connect(c["jump"]["host"], c["jump"]["port"], username=c["jump"]["user"], **common)
    async with asyncssh.connect(c["host"], c["port"], username=c["user"], tunnel=tunnel, **common) as conn:
        await {"command": command, "terminal": terminal, "files": files, "forward": forward, "remote": remote}[c["do"]](conn)
    if tunnel:
        tunnel.close()
    print("ok")


asyncio.run(asyncio.wait_for(main(), 60))
