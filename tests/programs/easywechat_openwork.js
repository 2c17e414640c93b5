// Uses node-easywechat's OpenWork, for service providers, through the proxy. KEY replaces the provider's and the suite's secret;
// http.baseURL is the only other changed setting.
//
//   easywechat_openwork.js serve CORPID SUITE_ID KEY TOKEN AES_KEY URL DIRECTORY
//   easywechat_openwork.js work  CORPID SUITE_ID KEY TOKEN AES_KEY URL DIRECTORY CONTROL AUTH_CODE AUTH_CORPID
//
// `serve` is a target of the suite's pushes: it prints its port, and then one line of JSON for each message; its suite_ticket
// goes to the cache in DIRECTORY. `work` has the same cache. It redeems AUTH_CODE, and calls in the name of suite, provider and
// corp; CONTROL is the simulator's control address, through which their tokens are revoked in between.
'use strict';
const assert = require('node:assert');
const http = require('node:http');
const { OpenWork, ServerRequest } = require('node-easywechat');

const [mode, corpId, suiteId, key, token, aesKey, url, directory, control, authCode, authCorpId] = process.argv.slice(2);

const openWork = () => new OpenWork({
  corp_id: corpId,
  provider_secret: key,
  suite_id: suiteId,
  suite_secret: key,
  token,
  aes_key: aesKey,
  http: { baseURL: url + '/' },
  file_cache: { path: directory },
});

async function receive(request) {
  const app = openWork();
  app.setRequest(request);
  const handler = app.getServer();
  handler.with(async (message, next) => {
    console.log(JSON.stringify(message.toObject ? message.toObject() : message));
    return next(message);
  });
  return handler.serve();
}

function serve() {
  const server = http.createServer((request, response) => {
    const chunks = [];
    request.on('data', (chunk) => chunks.push(chunk));
    request.on('end', async () => {
      try {
        const result = await receive(
          new ServerRequest(request.method, request.url, request.headers, Buffer.concat(chunks)),
        );
        response.writeHead(result.getStatusCode());
        response.end(result.getBody().toString());
      } catch (error) {
        console.error(error);
        response.writeHead(500);
        response.end();
      }
    });
  });
  server.listen(0, '127.0.0.1', () => console.log(server.address().port));
}

async function revoke(agent) {
  const response = await fetch(`${control}/control/revoke?agent=${encodeURIComponent(agent)}`, { method: 'POST' });
  assert.ok(response.ok, await response.text());
}

function ok(response) {
  const object = response.toObject();
  assert.strictEqual(object.errcode ?? 0, 0, JSON.stringify(object));
  return object;
}

async function work() {
  const app = openWork();
  // The provider's client: its token goes out with each call, beside the suite's.
  const client = app.getClient();
  const params = { suite_access_token: await app.getSuiteAccessToken().getToken() };
  const redeemed = ok(await client.postJson('cgi-bin/service/get_permanent_code', { auth_code: authCode }, { params }));
  assert.strictEqual(redeemed.auth_corp_info.corpid, authCorpId);
  const code = redeemed.permanent_code;

  const authorization = await app.getAuthorization(authCorpId, code);
  assert.strictEqual(authorization.getCorpId(), authCorpId);
  await revoke('crm');
  assert.ok((await app.createPreAuthorizationCode()).pre_auth_code);

  ok(await client.postJson('cgi-bin/service/contact/search', { query_word: 'zhang' }));
  await revoke('acme');
  ok(await client.postJson('cgi-bin/license/list_order', {}));

  const corp = await app.getAuthorizerClient(authCorpId, code);
  const user = ok(await corp.get('cgi-bin/user/get', { params: { userid: 'zhangsan' } }));
  assert.strictEqual(user.name, '张三');
  await revoke(`crm:${authCorpId}`);
  ok(await corp.postJson('cgi-bin/message/send', {
    touser: 'zhangsan', msgtype: 'text', agentid: 1000001, text: { content: '来自服务商' },
  }));
  assert.ok(await (await app.getJsApiTicket(authCorpId, code)).getTicket());
  console.log('openwork: fine');
}

if (mode === 'serve') {
  serve();
} else {
  work().catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
