"""What paramiko is put through; argv[1] is a JSON object that says where."""

import hashlib
import json
import socket
import sys
import threading

import paramiko

c = json.loads(sys.argv[1])


def session():
    key = paramiko.Ed25519Key.from_private_key_file(c["key"])
    if c.get("cert"):
        key.load_certificate(c["cert"])
    if c.get("command"):
        sock = paramiko.ProxyCommand(c["command"])
    else:
        sock = socket.create_connection((c["host"], c["port"]))
    transport = paramiko.Transport(sock)
    transport.start_client(timeout=30)
    if c.get("hostkey"):
        shown = transport.get_remote_server_key()
        got = hashlib.sha256(shown.asbytes()).hexdigest()
        assert got == c["hostkey"], f"the host key is {got}"
    transport.auth_publickey(c["user"], key)
    return transport


def command(transport):
    ch = transport.open_session()
    ch.exec_command("cat; echo err >&2; exit 7")
    body = bytes(range(256)) * 4096
    threading.Thread(target=lambda: (ch.sendall(body), ch.shutdown_write())).start()
    got = b""
    while chunk := ch.recv(65536):
        got += chunk
    err = ch.makefile_stderr().read()
    assert got == body, f"{len(got)} bytes came back"
    assert err == b"err\n", err
    assert ch.recv_exit_status() == 7


def terminal(transport):
    ch = transport.open_session()
    ch.get_pty("vt100", 90, 30)
    ch.invoke_shell()
    ch.sendall(b"stty size; exit 4\n")
    text = b""
    while chunk := ch.recv(65536):
        text += chunk
    assert b"30 90" in text, text
    assert ch.recv_exit_status() == 4


def files(transport):
    sftp = paramiko.SFTPClient.from_transport(transport)
    path = c["dir"] + "/paramiko"
    body = hashlib.sha256(b"x").digest() * 40000
    with sftp.open(path, "wb") as f:
        f.set_pipelined(True)
        f.write(body)
    sftp.rename(path, path + "2")
    sftp.chmod(path + "2", 0o600)
    assert sftp.stat(path + "2").st_size == len(body)
    assert "paramiko2" in sftp.listdir(c["dir"])
    with sftp.open(path + "2", "rb") as f:
        f.prefetch()
        assert f.read() == body
    sftp.remove(path + "2")


def forward(transport):
    ch = transport.open_channel("direct-tcpip", (c["echo_host"], c["echo_port"]), ("127.0.0.1", 1))
    ch.sendall(b"there and back")
    ch.shutdown_write()
    got = b""
    while chunk := ch.recv(65536):
        got += chunk
    assert got == b"there and back", got


def remote(transport):
    port = transport.request_port_forward("127.0.0.1", 0)
    near = socket.create_connection(("127.0.0.1", port))
    near.sendall(b"hello")
    near.shutdown(socket.SHUT_WR)
    ch = transport.accept(30)
    assert ch.recv(10) == b"hello"
    ch.sendall(b"world")
    ch.close()
    assert near.recv(10) == b"world"
    transport.cancel_port_forward("127.0.0.1", port)


with session() as transport:
    {"command": command, "terminal": terminal, "files": files, "forward": forward, "remote": remote}[c["do"]](transport)
print("ok")
