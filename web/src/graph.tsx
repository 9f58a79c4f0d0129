// An image's topology: configuration and data that containers use, left to right. Loaded when it is first shown.
import '@xyflow/react/dist/base.css'
import dagre from '@dagrejs/dagre'
import { Controls, type Edge, Handle, type Node, type NodeProps, Position, ReactFlow, type ReactFlowInstance } from '@xyflow/react'
import { useEffect, useMemo, useRef, useState } from 'react'
import { bytes } from './format'
import { type ImageRecord, kindOf } from './records'

type Part = Node<{ name: string; what: string; sort: string }, 'part'>
const WIDTH = 200
const HEIGHT = 56
const FIT = { maxZoom: 1, padding: 0.12 }

function PartNode({ data }: NodeProps<Part>) {
  return <div className={`node ${data.sort}`}><Handle type="target" position={Position.Left} isConnectable={false} /><b title={data.name}>{data.name}</b><span>{data.what}</span><Handle type="source" position={Position.Right} isConnectable={false} /></div>
}
const nodeTypes = { part: PartNode }
const named = (kind: string, name: string) => `${kind}/${name}`

/** Who uses what: a container uses the data service that its workload's configuration leads to. */
export function topology(record: ImageRecord): { nodes: Part[]; edges: Edge[] } {
  const nodes: Part[] = record.components.map((c) => ({
    id: c.name, type: 'part', position: { x: 0, y: 0 }, width: WIDTH, height: HEIGHT,
    data: { name: c.name, what: `${kindOf(c)}, ${bytes(c.bytes)}`, sort: c.body.config ? 'config' : c.body.container ? 'container' : 'data' },
  }))
  const users = new Map<string, string[]>()
  for (const c of record.components) for (const by of c.body.container?.found.used_by ?? []) users.set(named(by.kind, by.name), [...(users.get(named(by.kind, by.name)) ?? []), c.name])
  const edges = new Map<string, Edge>()
  const join = (source: string, target: string, label: string) => {
    const id = `${source}→${target}`
    if (source !== target && !edges.has(id)) edges.set(id, { id, source, target, label, focusable: false })
  }
  for (const c of record.components) {
    const found = c.body.data?.found
    if (!found) continue
    for (const binding of found.bindings) for (const user of binding.consumer ? (users.get(named(binding.consumer.kind, binding.consumer.name)) ?? []) : []) join(user, c.name, binding.role)
    if (found.workload) for (const server of users.get(named(found.workload.kind, found.workload.name)) ?? []) join(c.name, server, 'served by')
  }
  const layout = new dagre.graphlib.Graph()
  layout.setGraph({ rankdir: 'LR', nodesep: 26, ranksep: 90 })
  layout.setDefaultEdgeLabel(() => ({}))
  for (const node of nodes) layout.setNode(node.id, { width: WIDTH, height: HEIGHT })
  for (const edge of edges.values()) layout.setEdge(edge.source, edge.target)
  dagre.layout(layout)
  for (const node of nodes) { const at = layout.node(node.id); node.position = { x: at.x - WIDTH / 2, y: at.y - HEIGHT / 2 } }
  return { nodes, edges: [...edges.values()] }
}

export default function Graph({ record }: { record: ImageRecord }) {
  const { nodes, edges } = useMemo(() => topology(record), [record])
  const box = useRef<HTMLDivElement>(null)
  const [flow, setFlow] = useState<ReactFlowInstance<Part>>()
  // All of it is to be seen, however wide the window becomes.
  useEffect(() => {
    if (!box.current || !flow) return
    const watch = new ResizeObserver(() => void flow.fitView(FIT))
    watch.observe(box.current)
    return () => watch.disconnect()
  }, [flow])
  return (
    <div className="graph" ref={box} role="figure" aria-label={`${record.components.length} components, and which uses which; the list below names them`}>
      <ReactFlow nodes={nodes} edges={edges} nodeTypes={nodeTypes} fitView fitViewOptions={FIT} onInit={setFlow} minZoom={0.1} nodesDraggable={false} nodesConnectable={false} nodesFocusable={false} edgesFocusable={false} zoomOnScroll={false} preventScrolling={false}>
        <Controls showInteractive={false} />
      </ReactFlow>
    </div>
  )
}
