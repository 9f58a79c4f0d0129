// What the document of the API leaves open: an image's record, an inventory, a plan, progress, a failure.
export interface ObjectRef { kind: string; name: string }
export interface Consistency { level: 'snapshot' | 'crash-consistent' | 'inconsistent'; why: string; changed_count: number }
export interface Binding { object: ObjectRef; path: string; role: string; consumer: ObjectRef | null }
export interface Gap { name: string; what: string; why: string; blocking: boolean; next: string }
export interface ContainerFound { name: string; repository: string; tag: string | null; digest: string; used_by: ObjectRef[] }
export interface DataFound {
  name: string; kind: string; version: string | null; workload: ObjectRef | null; claims: string[]
  bytes: number | null; streams: number | null; consistency: Consistency; bindings: Binding[]; rights: Gap[]
}
export interface Stream { name: string; unit: string; items: number; bytes: number }
export interface Component {
  name: string; manifest: string; bytes: number; new_bytes: number; stored_bytes: number
  body: {
    config?: { objects: number; kinds: string[] }
    container?: { found: ContainerFound; platforms: { platform: string }[] }
    data?: { found: DataFound; version: string | null; features: string[]; streams: Stream[]; consistency: Consistency; notices: string[] }
  }
}
export interface ImageRecord {
  namespace: string; components: Component[]; left_out: { name: string; what: string; why: string }[]
  requirements: { platforms: string[]; kubernetes: string | null }
  lineage: { restored_from: string | null; base: string | null }
  instant: { skew_us: number | null }
}
export interface Inventory {
  application: string; objects: ObjectRef[]; config_bytes: number; containers: ContainerFound[]; data: DataFound[]; gaps: Gap[]
}
export interface Plan {
  environment: string; digest: string; notices: string[]
  steps: { action: string; what: string; detail: string; why: string }[]
  refusals: { what: string; needed: string; found: string; next: string }[]
}
export interface Progress { phase: string; bytes: number; of_bytes: number; new_bytes: number; items: number }
export interface Failure { what: string; cause: string; next: string; code: string }
export interface Report {
  agent_version: string; platform: string; nodes: number; architectures: string[]; data_kinds: string[]
  may_create_namespaces: boolean; registry: string | null; storage_classes: string[]; missing: string[]
}

/** Reads what the API gives as an open object. Its server's types are the ones above. */
export const as = <T>(value: unknown): T | undefined => (typeof value === 'object' && value !== null ? (value as T) : undefined)

export const kindOf = (component: Component) => (component.body.config ? 'configuration' : component.body.container ? 'container image' : (component.body.data?.found.kind ?? 'data'))
