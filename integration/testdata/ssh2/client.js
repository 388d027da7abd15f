// What npm's ssh2 is put through; argv[2] is a JSON object that says where.
const assert = require('assert');
const crypto = require('crypto');
const fs = require('fs');
const net = require('net');
const { Client } = require('ssh2');

const c = JSON.parse(process.argv[2]);

const collect = (stream) => new Promise((done) => {
  const chunks = [];
  stream.on('data', (b) => chunks.push(b));
  stream.on('end', () => done(Buffer.concat(chunks)));
});
const call = (object, method, ...args) => new Promise((done, fail) =>
  object[method](...args, (err, result) => (err ? fail(err) : done(result))));

async function command(conn) {
  const stream = await call(conn, 'exec', 'cat; echo err >&2; exit 7');
  const code = new Promise((done) => stream.on('exit', done));
  const body = Buffer.alloc(1 << 20, Buffer.from([...Array(256).keys()]));
  stream.end(body);
  const [out, err] = await Promise.all([collect(stream), collect(stream.stderr)]);
  assert.ok(out.equals(body), `${out.length} bytes came back`);
  assert.equal(err.toString(), 'err\n');
  assert.equal(await code, 7);
}

async function terminal(conn) {
  const stream = await call(conn, 'shell', { term: 'vt100', cols: 90, rows: 30 });
  const code = new Promise((done) => stream.on('exit', done));
  stream.write('stty size; exit 4\n');
  const text = (await collect(stream)).toString();
  assert.match(text, /30 90/);
  assert.equal(await code, 4);
}

async function files(conn) {
  const sftp = await call(conn, 'sftp');
  const path = c.dir + '/ssh2', near = c.near + '/ssh2';
  const body = crypto.createHash('sha256').update('x').digest('hex').repeat(20000);
  fs.writeFileSync(near, body);
  await call(sftp, 'fastPut', near, path);
  await call(sftp, 'rename', path, path + '-2');
  assert.ok((await call(sftp, 'readdir', c.dir)).some((e) => e.filename === 'ssh2-2'));
  await call(sftp, 'fastGet', path + '-2', near + '-back');
  assert.ok(fs.readFileSync(near + '-back', 'utf8') === body);
  await call(sftp, 'unlink', path + '-2');
  const err = await call(sftp, 'stat', path + '-2').then(() => null, (e) => e);
  assert.equal(err && err.code, 2);
}

async function forward(conn) {
  const stream = await call(conn, 'forwardOut', '127.0.0.1', 1, c.echo_host, c.echo_port);
  stream.end('there and back');
  assert.equal((await collect(stream)).toString(), 'there and back');
}

async function remote(conn) {
  const accepted = new Promise((done) => conn.on('tcp connection', (info, accept) => done(accept())));
  const port = await call(conn, 'forwardIn', '127.0.0.1', 0);
  const near = net.connect(port, '127.0.0.1');
  near.end('hello');
  const stream = await accepted;
  const got = collect(near);
  assert.equal((await collect(stream)).toString(), 'hello');
  stream.end('world');
  assert.equal((await got).toString(), 'world');
  await call(conn, 'unforwardIn', '127.0.0.1', port);
}

const conn = new Client();
conn.on('ready', async () => {
  try {
    await ({ command, terminal, files, forward, remote })[c.do](conn);
    console.log('ok');
  } catch (err) {
    console.error(err);
    process.exitCode = 1;
  }
  conn.end();
});
conn.on('error', (err) => {
  console.error(err);
  process.exitCode = 1;
});
conn.connect({
  host: c.host,
  port: c.port,
  username: c.user,
  privateKey: fs.readFileSync(c.key),
  hostHash: 'sha256',
  hostVerifier: (hash) => !c.hostkey || hash === c.hostkey,
  readyTimeout: 30000,
});
