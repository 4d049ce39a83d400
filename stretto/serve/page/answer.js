// An answer: asked for as a stream, kept as a record of steps. A recording holds nothing else, and replays from it.
//
// step: { at: ms since it was asked for, ids, texts, accepted, rejected: [text], part: "content" | "reasoning" }

import { ApiError, stream } from "./api.js";

/** Ask, and return the record. on(step, record): after each step. Stopping is an ending like others. */
export async function answer(request, { signal, on = () => {} } = {}) {
  const record = { request, model: "", steps: [], text: "", reasoning: "", finish: null, seed: null, usage: null, timings: null };
  const began = performance.now();
  const body = { ...request, stream: true, stream_options: { include_usage: true }, return_steps: true };
  let part = "content";
  try {
    for await (const event of stream("v1/chat/completions", body, signal)) {
      record.model = event.model;
      record.usage = event.usage ?? record.usage;
      record.timings = event.timings ?? record.timings;
      const choice = event.choices[0];
      if (!choice) continue;
      record.text += choice.delta.content ?? "";
      record.reasoning += choice.delta.reasoning ?? "";
      if (choice.delta.reasoning) part = "reasoning";
      else if (choice.delta.content) part = "content";
      record.finish = choice.finish_reason ?? record.finish;
      const how = choice.stretto ?? {};
      if (how.seed !== undefined) Object.assign(record, { seed: how.seed, approximate: how.approximate });
      if (how.texts) {
        const step = { at: performance.now() - began, ids: how.ids, texts: how.texts, accepted: how.accepted, rejected: how.rejected ?? [], part };
        record.steps.push(step);
        on(step, record);
      }
    }
  } catch (problem) {
    if (problem.name !== "AbortError" && !signal?.aborted) throw Object.assign(problem instanceof ApiError ? problem : new ApiError(0, String(problem)), { record });
    record.finish = "stopped";
  }
  record.duration = performance.now() - began;
  return record;
}

/** Each forward pass of a step as { sampled, accepted, rejected }: plain steps that ran as one are as many. */
export function passes(step) {
  if (step.accepted) return [{ sampled: step.ids.length - step.accepted, accepted: step.accepted, rejected: step.rejected.length }];
  return step.ids.map((_, i) => ({ sampled: 1, accepted: 0, rejected: i ? 0 : step.rejected.length }));
}

export const ids = (record) => record.steps.flatMap((step) => step.ids);

/** What the numbers beside an answer say; rates count from the first token on. */
export function numbers(record) {
  const { steps } = record;
  const tokens = steps.reduce((sum, step) => sum + step.ids.length, 0);
  const drafted = steps.reduce((sum, step) => sum + step.accepted + step.rejected.length, 0);
  const accepted = steps.reduce((sum, step) => sum + step.accepted, 0);
  const count = steps.reduce((sum, step) => sum + passes(step).length, 0);
  const first = steps[0]?.at ?? null;
  const span = steps.length > 1 ? steps.at(-1).at - first : 0;
  const speed = record.timings?.predicted_per_second || (span > 0 ? (1e3 * (tokens - steps[0].ids.length)) / span : null);
  return { tokens, drafted, accepted, first, speed, perStep: count ? tokens / count : null, cached: record.usage?.prompt_tokens_details?.cached_tokens ?? null };
}
