// The API as its document describes it. Requests that change something carry the header that only our pages may send.
import createClient from 'openapi-fetch'
import type { components, paths } from './openapi'

type Schemas = components['schemas']
export type Image = Schemas['ImageView']
export type Operation = Schemas['OperationView']
export type Task = Schemas['TaskView']
export type Environment = Schemas['EnvironmentView']
export type Site = Schemas['SiteView']
export type Verdict = Schemas['VerdictView']
export type Application = Schemas['ApplicationView']
export type Repository = Schemas['RepositoryView']
export type Status = Schemas['StatusView']
export type Problem = Schemas['Problem']

export const client = createClient<paths>({ headers: { 'ocopea-page': '1' } })

/** What was refused, in the shape in which everything is refused. */
export class Refused extends Error {
  readonly problem: Problem
  constructor(problem: Problem) {
    super(problem.detail)
    this.problem = problem
  }
}

const unreachable = (cause: unknown): Problem => ({
  type: 'urn:ocopea:problem:unreachable', title: 'No answer', status: 0,
  detail: 'Ocopea does not answer.', next: `Check that it runs and that this machine reaches it. (${String(cause)})`,
})

/** Hands out the data of an answer, or throws why there is none. */
export async function data<T>(asked: Promise<{ data?: T; error?: unknown; response: Response }>): Promise<T> {
  let answer
  try {
    answer = await asked
  } catch (cause) {
    if (cause instanceof DOMException && cause.name === 'AbortError') throw cause
    throw new Refused(unreachable(cause))
  }
  if (!answer.response.ok) {
    const told = answer.error
    const readable = typeof told === 'object' && told !== null && 'detail' in told
    throw new Refused(readable ? (told as Problem) : { type: '', title: answer.response.statusText, status: answer.response.status, detail: `It answered ${answer.response.status} ${answer.response.statusText}.` })
  }
  return answer.data as T
}

export const problemOf = (error: unknown): Problem => (error instanceof Refused ? error.problem : unreachable(error))

/** A key that makes repeating a request harmless. */
export const once = () => ({ 'Idempotency-Key': crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` })

const pause = (ms: number, signal: AbortSignal) =>
  new Promise<void>((done, stop) => {
    const timer = setTimeout(done, ms)
    signal.addEventListener('abort', () => { clearTimeout(timer); stop(new DOMException('stopped', 'AbortError')) }, { once: true })
  })

/** Waits for an operation that takes a moment, and hands it out when it is over. */
export async function ended(id: string, signal: AbortSignal): Promise<Operation> {
  for (;;) {
    const operation = await data(client.GET('/api/v1/operations/{id}', { params: { path: { id } }, signal }))
    if (operation.ended) return operation
    await pause(250, signal)
  }
}
