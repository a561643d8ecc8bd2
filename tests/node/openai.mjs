// What a program with OpenAI's npm package does: `node openai.mjs WHAT`, BASE_URL and API_KEY in the environment.
// Prints what came of it as JSON; tests/client/gateway/test_node.py looks at that.
import OpenAI from 'openai';

const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  maxRetries: 0,
  timeout: 30_000,
});
const asked = {
  model: 'tiny',
  messages: [{ role: 'user', content: 'hi' }],
  max_tokens: 12,
  temperature: 0,
};
const weather = {
  type: 'function',
  function: {
    name: 'weather',
    description: 'How the weather is',
    strict: true,
    parameters: {
      type: 'object',
      properties: { city: { enum: ['Rome', 'Oslo'] } },
      required: ['city'],
      additionalProperties: false,
    },
  },
};

async function chat() {
  const whole = await client.chat.completions.create(asked);
  const stream = await client.chat.completions.create({
    ...asked,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = '';
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage;
  }
  return {
    whole: whole.choices[0].message.content,
    streamed: text,
    wholeUsage: whole.usage,
    streamedUsage: usage,
  };
}

async function others() {
  const response = await client.responses.create({ model: 'tiny', input: 'hi', max_output_tokens: 8, temperature: 0 });
  let streamed = '';
  for await (const event of await client.responses.create({
    model: 'tiny',
    input: 'hi',
    max_output_tokens: 8,
    temperature: 0,
    stream: true,
  })) {
    if (event.type === 'response.output_text.delta') streamed += event.delta;
  }
  const [asBytes, asNumbers] = await Promise.all([
    client.embeddings.create({ model: 'tiny', input: 'the inn' }),
    client.embeddings.create({ model: 'tiny', input: 'the inn', encoding_format: 'float' }),
  ]);
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  return {
    response: response.output_text,
    streamed,
    asBytes: [...asBytes.data[0].embedding],
    asNumbers: asNumbers.data[0].embedding,
    models,
  };
}

async function tools() {
  const called = [];
  const runner = client.chat.completions.runTools({
    ...asked,
    max_tokens: 200,
    stream: true,
    parallel_tool_calls: false,
    tool_choice: { type: 'function', function: { name: 'weather' } },
    tools: [
      {
        type: 'function',
        function: {
          ...weather.function,
          parse: JSON.parse,
          function: (given) => {
            called.push(given);
            return 'sunny';
          },
        },
      },
    ],
  });
  await runner.done();
  const messages = runner.messages;
  const after = await client.chat.completions.create({
    ...asked,
    messages,
    tools: [weather],
    tool_choice: 'none',
  });
  return {
    called,
    roles: messages.map((message) => message.role),
    finish: after.choices[0].finish_reason,
  };
}

async function errors() {
  const found = {};
  const attempts = {
    model: () => client.chat.completions.create({ ...asked, model: 'nosuch' }),
    streamed: () => client.chat.completions.create({ ...asked, model: 'nosuch', stream: true }),
    key: () => client.withOptions({ apiKey: 'sk-0' }).chat.completions.create(asked),
    field: () => client.chat.completions.create({ ...asked, colour: 'red' }),
    context: () => client.chat.completions.create({ ...asked, max_tokens: 9000 }),
  };
  for (const [name, attempt] of Object.entries(attempts)) {
    try {
      await attempt();
    } catch (error) {
      found[name] = {
        kind: error.constructor.name,
        status: error.status,
        code: error.code,
        param: error.param,
        hasRequestId: Boolean(error.requestID),
      };
    }
  }
  return found;
}

/** Its key lets one request a minute through. */
async function limited() {
  await client.chat.completions.create(asked);
  try {
    await client.chat.completions.create(asked);
  } catch (error) {
    return {
      kind: error.constructor.name,
      code: error.code,
      retryAfter: Number(error.headers.get('retry-after')),
    };
  }
  return {};
}

/** Goes away amid an answer. */
async function leave() {
  const stream = await client.chat.completions.create({
    ...asked,
    max_tokens: 400,
    logit_bias: { 0: -100, 1: -100, 2: -100, 3: -100 },
    stream: true,
  });
  let n = 0;
  for await (const chunk of stream) {
    n += 1;
    if (chunk.choices[0].delta.content) break;
  }
  return { n, isAborted: stream.controller.signal.aborted };
}

const deeds = { chat, others, tools, errors, limited, leave };
console.log(JSON.stringify(await deeds[process.argv[2]]()));
