// A receiver of callbacks with node-easywechat's server: it verifies and decrypts.
//
//   easywechat_callback.js TOKEN AES_KEY RECEIVE_ID
//
// Prints its port, and then one line of JSON for each message.
'use strict';
const http = require('node:http');
const { ServerRequest, Work } = require('node-easywechat');

const [token, aesKey, receiveId] = process.argv.slice(2);

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (chunk) => chunks.push(chunk));
  request.on('end', async () => {
    try {
      const app = new Work({ corp_id: receiveId, secret: 'unused', token, aes_key: aesKey });
      app.setRequest(new ServerRequest(request.method, request.url, request.headers, Buffer.concat(chunks)));
      const handler = app.getServer();
      handler.with(async (message) => {
        console.log(JSON.stringify(message.toObject ? message.toObject() : message));
        return null;
      });
      const result = await handler.serve();
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
