-- Schema 2 of Lets-chat: version 1.5.0. Messages are numbered within their room; reactions.

lock table messages, rooms in exclusive mode;

alter table rooms add column next_seq bigint not null default 0;
alter table messages add column seq bigint;
update messages set seq = numbered.seq
    from (select n, row_number() over (partition by room_id order by n) as seq from messages) as numbered
    where numbered.n = messages.n;
update rooms set next_seq = counted.many
    from (select room_id, count(*) as many from messages group by room_id) as counted
    where counted.room_id = rooms.id;
alter table messages alter column seq set not null;
alter table messages add constraint messages_room_seq_key unique (room_id, seq);

create table reactions (
    n bigint not null references messages on delete cascade,
    account_id bigint not null references accounts on delete cascade,
    emoji text not null,
    given_at timestamptz not null default now(),
    primary key (n, account_id, emoji)
);
