// What was done, and what is under way.
import { useInfiniteQuery } from '@tanstack/react-query'
import { Switch } from '@mantine/core'
import { Link, getRouteApi } from '@tanstack/react-router'
import { useCallback, useEffect } from 'react'
import { type Operation, client, data } from '../api'
import { span } from '../format'
import { Ago, Empty, List, Page, State, Trouble, Waiting } from '../parts'

const route = getRouteApi('/operations')
/** Plans and inspections change nothing: the pages ask for one with every choice. */
const looksOnly = (o: Operation) => o.kind === 'inspect' || (o.kind === 'restore' && !o.environment)

export function Operations() {
  const { all } = route.useSearch()
  const navigate = route.useNavigate()
  const found = useInfiniteQuery({
    queryKey: ['operations'], initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => data(client.GET('/api/v1/operations', { params: { query: { limit: 200, ...(pageParam ? { cursor: pageParam } : {}) } }, signal })),
    getNextPageParam: (page) => page.next ?? undefined,
    refetchInterval: (query) => ((query.state.data?.pages.length ?? 0) > 1 ? false : 3000),
  })
  const { hasNextPage, isFetchingNextPage, fetchNextPage } = found
  const more = useCallback(() => { if (hasNextPage && !isFetchingNextPage) void fetchNextPage() }, [hasNextPage, isFetchingNextPage, fetchNextPage])
  const rows = (found.data?.pages.flatMap((page) => page.items) ?? []).filter((o) => all || !looksOnly(o))
  // A page of nothing but what is left out here shows no row that could ask for the next.
  useEffect(() => { if (rows.length < 30) more() }, [rows.length, more])
  return (
    <Page title="Operations" actions={<Switch label="Plans and inspections, too" checked={all ?? false} onChange={(event) => void navigate({ search: event.currentTarget.checked ? { all: true } : {}, replace: true })} />}>
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      {found.data && rows.length === 0 && !hasNextPage && <Empty title="Nothing was done yet">Saves, restores and what else takes time show up here.</Empty>}
      {rows.length > 0 && <List<Operation> label="Operations" rows={rows} id={(row) => row.id} more={more} columns={[
        { head: 'Operation', cell: (row) => <Link to="/operations/$operation" params={{ operation: row.id }} className="name">{row.title}</Link> },
        { head: 'State', cell: (row) => <State of={row.state} />, className: 'nowrap' },
        { head: 'Kind', cell: (row) => row.kind, className: 'nowrap' },
        { head: 'Person', cell: (row) => row.creator },
        { head: 'Took', cell: (row) => row.ended ? span(Date.parse(row.ended) - Date.parse(row.created)) : <span className="dim">runs</span>, className: 'right' },
        { head: 'Began', cell: (row) => <Ago at={row.created} />, className: 'nowrap' },
      ]} />}
    </Page>
  )
}
