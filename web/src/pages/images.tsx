// Saved images: found by words and by what the API can filter. The filters stand in the address.
import { Button, Select, TextInput } from '@mantine/core'
import { useDebouncedCallback } from '@mantine/hooks'
import { useInfiniteQuery, useQuery } from '@tanstack/react-query'
import { Link, getRouteApi } from '@tanstack/react-router'
import { useCallback, useState } from 'react'
import { type Image, client, data } from '../api'
import { bytes } from '../format'
import { Ago, Empty, Labels, List, Page, Trouble, Waiting } from '../parts'
import type { ImageFilters } from '../router'

const route = getRouteApi('/images')

export function Images() {
  const filters = route.useSearch()
  const navigate = route.useNavigate()
  const set = (change: Partial<ImageFilters>) => void navigate({ search: (old) => ({ ...old, ...change }), replace: true })
  const later = useDebouncedCallback(set, 250)
  const { label, ...rest } = filters
  const found = useInfiniteQuery({
    queryKey: ['images', filters],
    initialPageParam: undefined as string | undefined,
    queryFn: ({ pageParam, signal }) => data(client.GET('/api/v1/images', { params: { query: { ...rest, ...(label ? { label } : {}), limit: 200, ...(pageParam ? { cursor: pageParam } : {}) } as never }, signal })),
    getNextPageParam: (page) => page.next ?? undefined,
    refetchInterval: (query) => ((query.state.data?.pages.length ?? 0) > 1 ? false : 10_000),
    placeholderData: (old) => old,
  })
  const sites = useQuery({ queryKey: ['sites'], queryFn: ({ signal }) => data(client.GET('/api/v1/sites', { signal })) })
  const repositories = useQuery({ queryKey: ['repositories'], queryFn: ({ signal }) => data(client.GET('/api/v1/repositories', { signal })) })
  const rows = found.data?.pages.flatMap((page) => page.items) ?? []
  const { hasNextPage, isFetchingNextPage, fetchNextPage } = found
  const more = useCallback(() => { if (hasNextPage && !isFetchingNextPage) void fetchNextPage() }, [hasNextPage, isFetchingNextPage, fetchNextPage])
  const filtered = Object.keys(filters).length > 0
  // Text fields are written at once and searched for a moment later; cleared from outside, they start anew.
  const [round, setRound] = useState(0)
  const field = (name: 'q' | 'label' | 'application' | 'by', title: string, hint: string, wide = false) => (
    <TextInput key={`${name}${round}`} label={title} placeholder={hint} defaultValue={filters[name] ?? ''} className={wide ? 'wide' : ''} maxLength={200} onChange={(event) => later({ [name]: event.currentTarget.value || undefined })} />
  )
  return (
    <Page title="Images">
      <search className="filters">
        {field('q', 'Search', 'words of name, application, comment', true)}
        {field('application', 'Application', 'any')}
        {field('label', 'Label', 'bug=4711')}
        {field('by', 'Person', 'anybody')}
        <Select label="Site" placeholder="any" clearable clearButtonProps={{ 'aria-label': 'Any site' }} data={sites.data?.map((s) => s.name) ?? []} value={filters.site ?? null} onChange={(site) => set({ site: site ?? undefined } as ImageFilters)} />
        {(repositories.data?.length ?? 0) > 1 && <Select label="Repository" placeholder="any" clearable clearButtonProps={{ 'aria-label': 'Any repository' }} data={repositories.data?.map((r) => r.name) ?? []} value={filters.repository ?? null} onChange={(repository) => set({ repository: repository ?? undefined } as ImageFilters)} />}
      </search>
      {found.error && <Trouble error={found.error} again={() => void found.refetch()} />}
      {found.isPending && <Waiting />}
      {found.data && rows.length === 0 && (filtered
        ? <Empty title="No image fits"><Button size="xs" variant="default" onClick={() => { void navigate({ search: {} }); setRound((n) => n + 1) }}>Clear the filters</Button></Empty>
        : <Empty title="No image was saved yet">An image is a copy of a whole running application. <Link to="/applications">Choose an application and save it</Link>.</Empty>)}
      {rows.length > 0 && (
        <List<Image> label="Images" rows={rows} id={(row) => row.id} more={more} columns={[
          { head: 'Name', cell: (row) => <Link to="/images/$image" params={{ image: row.id }} className="name">{row.name}</Link> },
          { head: 'Application', cell: (row) => row.application },
          { head: 'Labels', cell: (row) => <Labels of={row.labels} /> },
          { head: 'Site', cell: (row) => row.site },
          { head: 'Person', cell: (row) => row.creator },
          { head: 'Size', cell: (row) => bytes(row.bytes), className: 'right' },
          { head: 'New', cell: (row) => bytes(row.new_bytes), className: 'right' },
          { head: 'Saved', cell: (row) => <Ago at={row.created} />, className: 'nowrap' },
        ]} />
      )}
    </Page>
  )
}
