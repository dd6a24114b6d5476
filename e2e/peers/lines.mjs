// Answers each line of JSON on stdin with one on stdout.
import { createInterface } from 'node:readline';
import { inspect } from 'node:util';

export async function serve(operations) {
  for await (const line of createInterface({ input: process.stdin })) {
    const { op, ...question } = JSON.parse(line);
    let answer;
    try {
      answer = (await operations[op](question)) ?? {};
    } catch (error) {
      answer = { error: inspect(error) };
    }
    process.stdout.write(JSON.stringify(answer) + '\n');
  }
  process.exit(0);
}
