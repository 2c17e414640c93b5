// Sends a message to a webhook URL as Uptime Kuma's "Webhook" notification does: axios takes user and password from the URL.
const axios = require("axios");

axios
    .post(process.argv[2], '{"msgtype":"text","text":{"content":"up"}}', { headers: { "Content-Type": "application/json" } })
    .then((response) => console.log(JSON.stringify(response.data)))
    .catch((error) => {
        console.error(error.message);
        process.exit(1);
    });
