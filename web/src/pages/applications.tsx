// What runs where, and what was saved of it.
import { Button } from '@mantine/core'
import { useQuery } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { type Application, client, data } from '../api'
import { bytes, plural } from '../format'
import { Ago, Empty, List, Page, Trouble, Waiting } from '../parts'

export function Applications() {
  const found = useQuery({ queryKey: ['applications'], queryFn: ({ signal }) => data(client.GET('/api/v1/applications', { signal })), refetchInterval: 10_000 })
  return (
    <Page title="Applications">
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      {found.data?.length === 0 && <Empty title="No application was found">Sites report what runs in their namespaces. <Link to="/sites">See what each site reports</Link>.</Empty>}
      {found.data && found.data.length > 0 && (
        <List<Application> label="Applications" rows={found.data} id={(row) => `${row.site}/${row.application}`} columns={[
          { head: 'Application', cell: (row) => <span className="name">{row.application}</span> },
          { head: 'Site', cell: (row) => row.site },
          { head: 'Runs', cell: (row) => `${plural(row.workloads, 'workload')}, ${plural(row.containers, 'container image')}` },
          { head: 'Data', cell: (row) => [...row.data, ...(row.claimed_bytes ? [`${bytes(row.claimed_bytes)} of volumes`] : [])].join(', ') || <span className="dim">none</span> },
          { head: 'Saved', cell: (row) => row.saved ? <Link to="/images" search={{ application: row.application }}><Ago at={row.saved} /></Link> : <span className="dim">never</span>, className: 'nowrap' },
          { head: 'Actions', cell: (row) => (
            <div className="acts">
              {row.saved && <Button component={Link} to="/images" search={{ application: row.application } as never} size="compact-sm" variant="default" aria-label={`Run a copy of ${row.application}`}>Run a copy</Button>}
              <Button component={Link} to="/save/$site/$namespace" params={{ site: row.site, namespace: row.application } as never} size="compact-sm" aria-label={`Save ${row.application} at ${row.site}`}>Save</Button>
            </div>) },
        ]} />
      )}
    </Page>
  )
}
