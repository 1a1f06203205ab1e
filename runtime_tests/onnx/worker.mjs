// ONNX Runtime in Node, at the far end of a pipe; the messages are those of worker.py.
//     node worker.mjs NODE_MODULES onnxruntime-web|onnxruntime-node

import fs from 'node:fs';
import path from 'node:path';
import {pathToFileURL} from 'node:url';

const [modules, engine] = process.argv.slice(2);
const web = engine === 'onnxruntime-web';
const entry = web ? 'dist/ort.wasm.min.mjs' : 'dist/index.js';
const loaded = await import(pathToFileURL(path.join(modules, engine, entry)));
const ort = web ? loaded : loaded.default;
if (web) ort.env.wasm.numThreads = 1;

// What libraries print is no answer; kept, it tells which steps of the optimizer changed a graph.
let printed = [];
const send = fs.writeSync;
const keep = (...words) => printed.push(words.join(' '));
fs.writeSync = (_, text) => keep(text); // WebAssembly prints by it
console.log = console.debug = console.info = console.warn = console.error = keep;
if (web) ort.env.logLevel = 'verbose';

const VIEWS = {
  float64: Float64Array, float32: Float32Array, float16: Uint16Array, int64: BigInt64Array, uint64: BigUint64Array,
  int32: Int32Array, uint32: Uint32Array, int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array,
  bool: Uint8Array,
};

function readBytes(count) {
  const bytes = new Uint8Array(new ArrayBuffer(count));
  for (let done = 0; done < count;) {
    const got = fs.readSync(0, bytes, done, count - done);
    if (got === 0) return null;
    done += got;
  }
  return bytes;
}

function read() {
  const start = readBytes(4);
  if (start === null) return null;
  const header = readBytes(new DataView(start.buffer).getUint32(0, true));
  const message = JSON.parse(new TextDecoder().decode(header));
  const arrays = {};
  for (const [name, type, shape] of message.arrays) {
    const size = shape.reduce((a, b) => a * b, 1);
    const bytes = readBytes(size * VIEWS[type].BYTES_PER_ELEMENT);
    arrays[name] = {type, shape, values: new VIEWS[type](bytes.buffer)};
  }
  return {message, arrays};
}

function writeBytes(bytes) {
  for (let done = 0; done < bytes.length;) done += send(1, bytes, done);
}

function write(message, arrays = {}) {
  const listed = Object.entries(arrays).map(([name, {type, shape}]) => [name, type, shape]);
  const header = new TextEncoder().encode(JSON.stringify({...message, arrays: listed}));
  const start = new Uint8Array(4);
  new DataView(start.buffer).setUint32(0, header.length, true);
  writeBytes(start);
  writeBytes(header);
  for (const {values} of Object.values(arrays)) {
    writeBytes(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
}

// {'session.x.y': 'v'} -> {session: {x: {y: 'v'}}}, as the JavaScript interface takes it
function nested(config) {
  const tree = {};
  for (const [key, value] of Object.entries(config)) {
    const words = key.split('.');
    const last = words.pop();
    words.reduce((node, word) => (node[word] ??= {}), tree)[last] = value;
  }
  return tree;
}

async function load(message, arrays) {
  const setting = message.setting;
  const options = {
    executionProviders: [web ? 'wasm' : 'cpu'],
    graphOptimizationLevel: {off: 'disabled'}[setting.level] ?? setting.level ?? 'all',
    enableCpuMemArena: setting.arena ?? true,
    logSeverityLevel: web ? 1 : 3,
    extra: nested(setting.config ?? {}),
  };
  if (!web) Object.assign(options, {intraOpNumThreads: setting.threads ?? 1, interOpNumThreads: 1});
  if (setting.optimized && !web) options.optimizedModelFilePath = setting.optimized;
  if (setting.folder) {
    if (!web) options.extra.session = {...options.extra.session, model_external_initializers_file_folder_path: setting.folder};
    else options.externalData = setting.data.map(
      (name) => ({path: name, data: new Uint8Array(fs.readFileSync(path.join(setting.folder, name)))}));
  }
  const model = arrays.model?.values ?? (web ? new Uint8Array(fs.readFileSync(message.path)) : message.path);
  return ort.InferenceSession.create(model, options);
}

async function run(session, arrays) {
  const feeds = {};
  for (const [name, {type, shape, values}] of Object.entries(arrays)) feeds[name] = new ort.Tensor(type, values, shape);
  const made = {};
  for (const [name, tensor] of Object.entries(await session.run(feeds))) {
    made[name] = {type: tensor.type, shape: tensor.dims, values: await tensor.getData()};
  }
  return made;
}

const sessions = new Map();

async function answer(message, arrays) {
  if (message.op === 'greet') {
    return [{version: ort.env.versions[web ? 'web' : 'node'] ?? ort.env.versions.common, sessions: sessions.size}];
  }
  if (message.op === 'load') {
    printed = [];
    const session = await load(message, arrays);
    const changed = printed.map((line) => line.match(/GraphTransformer (\S+) modified: 1/)?.[1]).filter(Boolean);
    sessions.set(message.session, session);
    const inputs = Object.fromEntries(session.inputMetadata.map((i) => [i.name, i.shape]));
    const threads = web ? ort.env.wasm.numThreads : message.setting.threads ?? 1;
    return [{inputs, outputs: session.outputNames, rewritten_by: web ? changed : null, threads}];
  }
  if (message.op === 'run') return [{}, await run(sessions.get(message.session), arrays)];
  await sessions.get(message.session).release();
  sessions.delete(message.session);
  return [{}];
}

for (let received; (received = read()) !== null;) {
  try {
    write(...await answer(received.message, received.arrays));
  } catch (error) {
    write({error: String(error?.message ?? error)});
  }
}
process.exit(0);
