// Uses node-easywechat through the proxy. KEY replaces the secret; http.baseURL is the only other changed setting.
//
//   easywechat.js CORPID KEY CONTROL URL DIRECTORY
//
// CONTROL is the simulator's control address, through which the token is revoked repeatedly; DIRECTORY is for files, among
// them the token cache.
'use strict';
const assert = require('node:assert');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { Work } = require('node-easywechat');

const [corpId, key, control, url, directory] = process.argv.slice(2);
const content = crypto.randomBytes(300 * 1024);

const app = new Work({
  corp_id: corpId,
  secret: key,
  agent_id: 1000002,
  http: { baseURL: url + '/' },
  file_cache: { path: directory },
});
const client = app.getClient();

async function invalidateToken(kind) {
  const response = await fetch(`${control}/control/${kind}?agent=hr`, { method: 'POST' });
  assert.ok(response.ok);
}

async function get(path, params) {
  const response = (await client.get(path, { params })).toObject();
  assert.strictEqual(response.errcode, 0, JSON.stringify(response));
  return response;
}

async function post(path, json) {
  const response = (await client.postJson(path, json)).toObject();
  assert.strictEqual(response.errcode, 0, JSON.stringify(response));
  return response;
}

async function upload() {
  const file = path.join(directory, 'report.bin');
  fs.writeFileSync(file, content);
  const form = client.withFile(file, 'media');
  const response = (await form.post('cgi-bin/media/upload', { params: { type: 'file' } })).toObject();
  assert.strictEqual(response.errcode, 0, JSON.stringify(response));
  return response.media_id;
}

async function download(mediaId) {
  const options = { params: { media_id: mediaId }, responseType: 'arraybuffer' };
  const response = await client.get('cgi-bin/media/get', options);
  assert.ok(Buffer.from(response.getContent()).equals(content));
}

async function main() {
  assert.strictEqual((await get('cgi-bin/user/get', { userid: 'zhangsan' })).name, '张三');
  await invalidateToken('revoke');
  assert.strictEqual((await get('cgi-bin/department/list')).department.length, 4);
  const { id } = await post('cgi-bin/department/create', { name: '客服部', parentid: 1 });
  await invalidateToken('expire');
  await get('cgi-bin/department/delete', { id });

  const { tagid } = await post('cgi-bin/tag/create', { tagname: '客服' });
  await invalidateToken('revoke');
  await post('cgi-bin/tag/addtagusers', { tagid, userlist: ['lisi'] });
  assert.strictEqual((await get('cgi-bin/tag/get', { tagid })).userlist[0].userid, 'lisi');

  for (const text of ['hello', '你好，世界 😀']) {
    await invalidateToken('revoke');
    await post('cgi-bin/message/send', {
      touser: 'zhangsan', msgtype: 'text', agentid: 1000002, text: { content: text },
    });
  }

  await invalidateToken('expire');
  const mediaId = await upload();
  await download(mediaId);
  await invalidateToken('revoke');
  await download(mediaId);

  assert.ok(await app.getTicket().getTicket());
  console.log('easywechat: fine');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
