// Sends and consumes with the official Node client; prints one JSON line with what it saw.
const { Producer, SimpleConsumer, PushConsumer, ConsumeResult, FilterExpression } = require('rocketmq-client-nodejs');

const endpoints = process.argv[2];

async function main() {
  const seen = {};
  const producer = new Producer({ endpoints, topics: ['node'] });
  await producer.startup();
  const receipt = await producer.send({
    topic: 'node', tag: 'a', keys: ['k1', 'k2'], body: Buffer.from('hello'), properties: new Map([['p', 'v']]),
  });
  seen.sent = receipt.messageId;

  const simple = new SimpleConsumer({
    consumerGroup: 'node-simple', endpoints, subscriptions: new Map().set('node', '*'), awaitDuration: 5000,
  });
  await simple.startup();
  const [message] = await simple.receive(10, 15000);
  seen.simple = { id: message.messageId, body: message.body.toString(), tag: message.tag, attempt: message.deliveryAttempt };
  await simple.ack(message);

  const bodies = [];
  let done;
  const enough = new Promise(resolve => { done = resolve; });
  const push = new PushConsumer({
    consumerGroup: 'node-push', endpoints, subscriptions: new Map([['node', new FilterExpression('*')]]),
    messageListener: {
      async consume(view) {
        bodies.push([view.body.toString(), view.deliveryAttempt]);
        if (bodies.length === 3) done();
        return view.body.toString() === 'again' && view.deliveryAttempt === 1 ? ConsumeResult.FAILURE : ConsumeResult.SUCCESS;
      },
    },
  });
  await push.startup();
  await producer.send({ topic: 'node', body: Buffer.from('again') });
  await enough;
  seen.push = bodies.sort();

  await push.shutdown();
  await simple.shutdown();
  await producer.shutdown();
  console.log(JSON.stringify(seen));
  process.exit(0);
}

main().catch(error => { console.error(error); process.exit(1); });
