// What Ocopea deployed, and where it runs.
import { useInfiniteQuery } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { useCallback } from 'react'
import { type Environment, client, data } from '../api'
import { safeUrl, short } from '../format'
import { Ago, Empty, List, Page, Runs, Trouble, Waiting } from '../parts'

export function Environments() {
  const found = useInfiniteQuery({
    queryKey: ['environments'], initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => data(client.GET('/api/v1/environments', { params: { query: { limit: 200, ...(pageParam ? { cursor: pageParam } : {}) } }, signal })),
    getNextPageParam: (page) => page.next ?? undefined,
    refetchInterval: (query) => ((query.state.data?.pages.length ?? 0) > 1 ? false : 5000),
  })
  const { hasNextPage, isFetchingNextPage, fetchNextPage } = found
  const more = useCallback(() => { if (hasNextPage && !isFetchingNextPage) void fetchNextPage() }, [hasNextPage, isFetchingNextPage, fetchNextPage])
  const rows = found.data?.pages.flatMap((page) => page.items) ?? []
  return (
    <Page title="Environments">
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      {found.data && rows.length === 0 && <Empty title="Nothing runs that Ocopea deployed">Open <Link to="/images">an image</Link> and restore it.</Empty>}
      {rows.length > 0 && <List<Environment> label="Environments" rows={rows} id={(row) => row.id} more={more} columns={[
        { head: 'Name', cell: (row) => <Link to="/environments/$environment" params={{ environment: row.id }} className="name">{row.name}</Link> },
        { head: 'State', cell: (row) => <Runs of={row.state} />, className: 'nowrap' },
        { head: 'Site', cell: (row) => row.site },
        { head: 'From', cell: (row) => <Link to="/images/$image" params={{ image: row.image }} className="mono" aria-label={`Image ${row.image}`}>{short(row.image)}…</Link> },
        { head: 'URL', cell: (row) => safeUrl(row.url) ? <a href={safeUrl(row.url)} target="_blank" rel="noreferrer noopener">{row.url}</a> : <span className="dim">none</span> },
        { head: 'Owner', cell: (row) => row.owner },
        { head: 'Made', cell: (row) => <Ago at={row.created} />, className: 'nowrap' },
      ]} />}
    </Page>
  )
}
